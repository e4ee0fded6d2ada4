# SPDX-License-Identifier: Apache-2.0
"""The pages of the demo's site: the files of the standard library and of site-packages, with an index page a directory.

The same Python installation gives the same pages: files are taken in sorted order until there are as many pages as
asked for, and are read once. Byte code comes last, because importing something may write more of it. The root page
links to every directory, so that each page is two steps away at most and a crawl soon has more links than workers.
"""

import hashlib
import html
import mimetypes
import os
import stat
import sysconfig
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import quote

from digest import Row

MAX_FILE_BYTES = 256 * 1024


@dataclass(frozen=True)
class Page:
    """What is served at one path, and how many links it has."""

    path: str
    content_type: str
    body: bytes
    links: int = 0

    def row(self) -> Row:
        """Returns what a crawl has to store for this page."""
        return self.path, 200, len(self.body), hashlib.sha256(self.body).hexdigest(), self.links


def build_pages(count: int) -> list[Page]:
    """Returns ``count`` pages, the root page first; fewer if the installation does not have that many."""
    files: dict[str, Page] = {}
    directories = {"/"}
    for path, file in _files():
        parents = _parents(path) - directories
        if len(files) + 1 + len(directories | parents) <= count and (page := _file_page(path, file)):
            files[path] = page
            directories |= parents
        if len(files) + len(directories) == count:
            break
    return [*_index_pages(directories, files), *files.values()]


def _files() -> Iterator[tuple[str, str]]:
    """Yields path on the site and name on disk of each regular file: stdlib, site-packages, then byte code."""
    stdlib, packages = sysconfig.get_path("stdlib"), sysconfig.get_path("purelib")
    roots = {"stdlib": stdlib}
    if not packages.startswith(stdlib + os.sep):  # a virtual environment's own
        roots["site-packages"] = packages
    byte_code = []
    for name, root in roots.items():
        for path, file in sorted(_walk(name, root)):
            if "/__pycache__/" in path:
                byte_code.append((path, file))
            else:
                yield path, file
    yield from byte_code


def _walk(name: str, root: str) -> Iterator[tuple[str, str]]:
    for folder, _, file_names in os.walk(root):
        for file_name in file_names:
            file = os.path.join(folder, file_name)
            yield f"/{name}/" + quote(os.fsencode(os.path.relpath(file, root))), file


def _file_page(path: str, file: str) -> Page | None:
    try:
        status = os.lstat(file)
        if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_FILE_BYTES:
            return None
        with open(file, "rb") as stream:
            body = stream.read()
    except OSError:
        return None
    content_type = mimetypes.guess_type(file)[0] or "text/plain"
    if "html" in content_type:  # the links of such a file lead to pages that are not on this site
        content_type = "text/plain"
    return Page(path, content_type, body)


def _parents(path: str) -> set[str]:
    """Returns the directories above a file's path, without the root."""
    parts = path.split("/")[1:-1]
    return {"/" + "/".join(parts[: depth + 1]) + "/" for depth in range(len(parts))}


def _index_pages(directories: set[str], files: dict[str, Page]) -> Iterator[Page]:
    children: dict[str, list[str]] = defaultdict(list)
    for path in [*directories - {"/"}, *files]:
        parent = path.rstrip("/").rpartition("/")[0] + "/"
        children[parent].append(path)
        if path.endswith("/"):
            children[path].append(parent)
    children["/"] = list(directories - {"/"})
    for directory in sorted(directories):
        yield _index_page(directory, sorted(children[directory]))


def _index_page(directory: str, links: list[str]) -> Page:
    title = f"Index of {html.escape(directory)}"
    items = "".join(f'<li><a href="{html.escape(link)}">{html.escape(link)}</a>\n' for link in links)
    text = f"<!doctype html>\n<title>{title}</title>\n<h1>{title}</h1>\n<ul>\n{items}</ul>\n"
    return Page(directory, "text/html; charset=utf-8", text.encode(), len(links))
