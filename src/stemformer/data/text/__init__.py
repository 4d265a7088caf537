"""Raw text: input files, records, documents and sentence boundaries."""
