"""Files: atomic writes, checksums, cache, downloads."""

from .atomic import put_in_place, read_json, sync, whole_file, whole_files, whole_folder, write_json, write_text
from .cache import cache_folder
from .checksums import Record, Seen, sha256_of
from .http import fetch
from .hub import download
from .names import readable

__all__ = [
    "Record",
    "Seen",
    "cache_folder",
    "download",
    "fetch",
    "put_in_place",
    "read_json",
    "readable",
    "sha256_of",
    "sync",
    "whole_file",
    "whole_files",
    "whole_folder",
    "write_json",
    "write_text",
]
