"""The only room that writes, links, renames, removes or locks."""
