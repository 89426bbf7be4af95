"""What a bundle says of its tokenizer: the specification for small readers, vocabulary files, golden vectors."""
