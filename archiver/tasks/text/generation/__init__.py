"""text-generation: its declaration, its workload, the windows that it is measured on, and the prompts that are stored."""
