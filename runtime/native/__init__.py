"""The engine's operations in C++: what the CPU plugin does not have, or does slower than this CPU can."""
