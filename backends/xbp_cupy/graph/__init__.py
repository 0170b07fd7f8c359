"""The engine `graph`: a recorded program as generated kernels and products of cuBLASLt, captured as one CUDA graph."""
