"""A page on this machine only: look at results, drop scans in, watch their restoration, save what was found."""
