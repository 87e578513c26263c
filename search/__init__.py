"""An atlas answers: what is like this?"""
