"""`python -m llamahome.data`: a process that encodes what its parent sends (encoding.py)."""

from llamahome.data.encoding import serve_chunks

if __name__ == "__main__":
    serve_chunks()
