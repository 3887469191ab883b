"""The serve-time wing: everything in this package travels inside the archive and imports nothing from `archiver`.

Inside a `.mar` it has the same name, so `from handlers.batching import ...` means the same there and in the repository.
"""
