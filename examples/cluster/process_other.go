//go:build !unix

package main

import (
	"errors"
	"io"
	"os/exec"
)

const slayOrder = ""

func apart(*exec.Cmd) {}

func keep(io.Reader, []string) error { return errNoServer }

func own(string) error { return errNoServer }

var errNoServer = errors.New("PostgreSQL is started on Unix only; give -database URL")
