"""What the Triton kernels of all families share. Nothing here is imported before a CUDA tensor arrives."""
