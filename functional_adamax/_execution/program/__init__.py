"""Executor: any rule that can be recorded, as a program of the machine in ``native/machine.c``."""
