"""Other libraries, made ready for bi_compile; each module needs its library."""
