"""Files that no other user can have written.

Compiled code is pickled, and reading a pickle runs what it says. So a file is read only if its owner is this user or
root and nobody else may write it, and the same of its folder. Of the folders above, each belongs to this user or root,
and others may write there only where the sticky bit keeps them from renaming what is not theirs, or by a group that is
root's or this user's alone; whoever owns a symbolic link on the way is asked for alike. On Windows, where the user's
folders are private already, nothing is checked.

A file begins with a digest of what follows: half a file, or one with holes, is never unpickled.
"""

from __future__ import annotations

import os
import stat
from hashlib import sha256
from pathlib import Path

__all__ = ["check_folder", "make_folder", "read_file", "write_file"]

_DIGEST_BYTES = sha256().digest_size
_MOST_LINKS = 40  # of a path, as Linux has it


def check_folder(folder: Path, private_from: Path) -> None:
    """Raises PermissionError that names the first place on the way to an absolute `folder` that others may change.

    From `private_from` on nobody else may write; above it see the module. What does not exist is not checked. Raises
    OSError where a place cannot be looked at.
    """
    if not hasattr(os, "geteuid"):
        return
    strict_from = len(private_from.parts)
    todo = [(part, i >= strict_from - 1) for i, part in enumerate(folder.parts)][::-1]
    here, n_links = Path(folder.anchor), 0
    while todo:
        part, strict = todo.pop()
        here = here.parent if part == os.pardir else here / part
        try:
            found = here.lstat()
        except FileNotFoundError:
            return
        if not stat.S_ISLNK(found.st_mode):
            _check(here, found, strict)
            continue
        _check_owner(here, found)
        n_links += 1
        if n_links > _MOST_LINKS:
            raise PermissionError(f"expected at most {_MOST_LINKS} symbolic links on the way to {folder}, got more")
        target = here.readlink().parts
        todo += [(name, strict and i == len(target) - 1) for i, name in enumerate(target)][::-1]
        here = here.parent


def _check(path: Path, found: os.stat_result, strict: bool) -> None:
    _check_owner(path, found)
    others = found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    own_group = others == stat.S_IWGRP and _is_own_group(found.st_gid)
    if not others or (not strict and (own_group or found.st_mode & stat.S_ISVTX)):
        return
    raise PermissionError(
        f"expected files and folders that no other user can change, got {path} of mode {stat.S_IMODE(found.st_mode):o}"
    )


def _check_owner(path: Path, found: os.stat_result) -> None:
    if found.st_uid not in (0, os.geteuid()):
        raise PermissionError(f"expected files and folders of uid {os.geteuid()} or root, got {path} of {found.st_uid}")


def _is_own_group(gid: int) -> bool:
    """Whether it is root's group or the one that bears this user's name and has no other member."""
    if gid == 0:
        return True
    import grp
    import pwd

    try:
        user, group = pwd.getpwuid(os.geteuid()).pw_name, grp.getgrgid(gid)
    except KeyError:
        return False
    return group.gr_name == user and set(group.gr_mem) <= {user}


def make_folder(folder: Path, private_from: Path) -> None:
    """Makes an absolute folder and those above it that are missing, for this user alone whatever the umask; checks it.

    Raises OSError, PermissionError as `check_folder`.
    """
    check_folder(folder, private_from)
    for missing in reversed([path for path in (folder, *folder.parents) if not path.exists()]):
        try:
            missing.mkdir(mode=0o700)
            missing.chmod(0o700)
        except FileExistsError:  # another process was faster
            if not missing.is_dir():
                raise
    check_folder(folder, private_from)


def read_file(path: Path) -> bytes | None:
    """What `write_file` wrote; None where there is no such file.

    Raises PermissionError for a file that others may have written, ValueError for one that is not whole, OSError.
    """
    flags = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        opened = os.open(path, flags)
    except FileNotFoundError:
        return None
    with open(opened, "rb") as file:
        found = os.fstat(opened)  # of what is open: the name may stand for another file by now
        if not stat.S_ISREG(found.st_mode):
            raise ValueError(f"expected a file, got {stat.filemode(found.st_mode)}")
        if hasattr(os, "geteuid"):
            _check(path, found, strict=True)
        data = file.read()
    digest, content = data[:_DIGEST_BYTES], data[_DIGEST_BYTES:]
    if sha256(content).digest() != digest:
        raise ValueError(f"expected the digest of the file's content, got another in {len(data)} bytes")
    return content


def write_file(path: Path, content: bytes) -> None:
    """Writes a file that appears whole or not at all, for this user alone whatever the umask.

    Its folder is one of `make_folder`, and the caller holds a lock that others of this name wait for. Raises OSError,
    and then leaves nothing behind.
    """
    part = path.with_name(f"{path.name}.part")
    part.unlink(missing_ok=True)  # of a process that was killed
    try:
        opened = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o600)
        with open(opened, "wb") as file:
            if hasattr(os, "fchmod"):
                os.fchmod(opened, 0o600)
            file.write(sha256(content).digest() + content)
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
