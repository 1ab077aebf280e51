"""`bash run.sh web`: a page on this machine that shows students and tokenizers at work."""
