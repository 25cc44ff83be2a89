"""C++ kernels: the build, the shared headers. The kernels stand beside their contracts."""
