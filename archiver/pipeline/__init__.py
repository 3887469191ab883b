from archiver.moved import moved_names

__getattr__ = moved_names("archiver.pipeline")
