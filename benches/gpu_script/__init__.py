"""What gpu.py is made of; gpu_script/steps what gpu_steps.py is. All but the latter does without torch."""
