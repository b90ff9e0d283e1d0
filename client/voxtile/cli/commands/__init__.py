"""The subcommands of `voxtile`, a file each."""
