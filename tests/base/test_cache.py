import os
import stat

import pytest

from tdsm.base.cache import cache_folder, check_own, private_folder


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_the_cache_is_the_users_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "some" / "cache"))
    assert cache_folder() == tmp_path / "some" / "cache" / "tdsm"
    assert mode(cache_folder()) == 0o700
    cache_folder().chmod(0o755)
    assert mode(cache_folder()) == 0o700


def test_a_folder_others_could_write_to_is_refused(tmp_path):
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(OSError, match="owns it or can write there"):
        private_folder(tmp_path / "open")
    with pytest.raises(OSError, match="written by every user"):
        private_folder(tmp_path / "open" / "inner")
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(OSError, match="is a link"):
        private_folder(tmp_path / "link")


def test_another_users_file_is_refused(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    check_own(tmp_path / "file")
    monkeypatch.setattr(os, "geteuid", lambda: tmp_path.stat().st_uid + 1)
    with pytest.raises(OSError, match="another user owns it"):
        check_own(tmp_path / "file")
