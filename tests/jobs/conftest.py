from jobs.desk import desk, picture, studio  # noqa: F401
