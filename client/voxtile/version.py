"""The version of the client, which masks carry in their passports."""

__version__ = "0.1.0"
