"""Files: atomic writes, checksums, cache, downloads, tables."""

from .atomic import put_in_place, read_json, sync, whole_file, whole_files, whole_folder, write_json, write_text
from .cache import cache_folder
from .checksums import Record, Seen, sha256_of
from .http import fetch
from .hub import download
from .names import counted, readable
from .tables import save_table, write_table

__all__ = [
    "Record",
    "Seen",
    "cache_folder",
    "counted",
    "download",
    "fetch",
    "put_in_place",
    "read_json",
    "readable",
    "save_table",
    "sha256_of",
    "sync",
    "whole_file",
    "whole_files",
    "whole_folder",
    "write_json",
    "write_table",
    "write_text",
]
