"""The engines, a folder each: what it can build, its variants, how it runs, its part of config.pbtxt, its checks."""
