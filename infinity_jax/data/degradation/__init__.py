"""How a clean picture becomes one of low quality: Real-ESRGAN's second-order process (docs/spec_nsarm.md section 6)."""
