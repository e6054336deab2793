"""Leave out the one module that needs triton, where there is none."""

from importlib.util import find_spec

collect_ignore = [] if find_spec("triton") else ["src/tdsm/decomposition/kernels/gpu.py"]
