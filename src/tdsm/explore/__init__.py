"""The page to play with: choose an image, switch its tokens on and off, ask which of them speak where.

studio.py    what a page is about: a field, images, heads; it answers every question of the page
heads.py     fitted classifiers, and what they say when tokens are missing
wire.py      arrays as bytes
document.py  page/ put together into one HTML file
server.py    the page and its answers, to this machine alone
export.py    the same page with its answers inside, for a file
notebook.py  the same in a notebook
"""
