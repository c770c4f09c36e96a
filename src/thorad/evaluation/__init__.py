"""How well maps find lesions: metrics (numpy in, numbers out), the field's protocols, and the run over a bench."""
