package main

import "io"

func capacityCommand(out io.Writer, args []string) error { return nil }
