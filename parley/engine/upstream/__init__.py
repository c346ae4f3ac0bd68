"""An engine in its own right: any server that speaks OpenAI's chat completions, somewhere else."""
