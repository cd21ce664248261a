"""Where programs of others find fused folders."""
