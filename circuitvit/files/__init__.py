"""Reading and writing of files: each result is wholly old or wholly new, whatever happens."""

from circuitvit.files.commits import finish_save
from circuitvit.files.folders import writing_folder
from circuitvit.files.locks import held
from circuitvit.files.outputs import check_folder_writable, check_writable, inside
from circuitvit.files.reading import read_json
from circuitvit.files.troubles import in_one_line, readable_path, unwritable_cache
from circuitvit.files.writing import plain_json, replacing, write_json, write_text

__all__ = [
    "check_folder_writable",
    "check_writable",
    "finish_save",
    "held",
    "in_one_line",
    "inside",
    "plain_json",
    "read_json",
    "readable_path",
    "replacing",
    "unwritable_cache",
    "write_json",
    "write_text",
    "writing_folder",
]
