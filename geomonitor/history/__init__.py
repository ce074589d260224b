"""What a run leaves behind: records in memory, an append-only CSV file, and its side file.

- ``records``: :class:`Record` and :class:`Series`.
- ``history``: :class:`History`, all records of a run.
- ``columns``, ``state``, ``lines``: these records as columns of numbers, as tensors in a checkpoint, as lines of CSV.
- ``run_file``, ``files``, ``lock``: the file, on a disk that may be full or shared.
- ``run_id``: what ties the file, its checkpoints and its loggers together.
- ``runs``: the directory of a run, found and read again.
"""
