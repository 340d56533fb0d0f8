"""The phases of `chaos.py`: each makes trouble for a real instance and answers its figures and what broke."""
