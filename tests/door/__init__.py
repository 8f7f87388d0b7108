"""The one door of `agent.lifecycle.Call`, in this process: whatever happens, and in whatever order."""
