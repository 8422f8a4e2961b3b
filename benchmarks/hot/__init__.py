"""How the times of hot functions are kept and compared."""
