"""Conversations: an environment, such as a tool, answers the policy between its turns."""
