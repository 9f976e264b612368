"""Networks above the leaf switches, one small file each: their links, and the paths between two leaves."""
