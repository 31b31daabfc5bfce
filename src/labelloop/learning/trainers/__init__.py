"""From a frozen data set to a model file: one file or folder per trainer, each run in a child process."""
