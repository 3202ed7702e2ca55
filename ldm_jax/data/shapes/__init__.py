"""The embedded data set `shapes`: scenes drawn by a program."""
