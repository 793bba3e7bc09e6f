"""The substrate of the diffusion plugins: processes, networks, training, sampling."""
