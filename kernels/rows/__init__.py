"""Row kernels: one program handles whole rows, bandwidth is the bound."""
