package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"

	"github.com/scepkit/scepkit/backend"
	"github.com/scepkit/scepkit/scep"
)

// An asker asks a person for PINs, for each token once.
type asker struct {
	stderr io.Writer
	pins   map[string]scep.Secret
	stdin  *bufio.Reader
}

func (a *asker) ask(ctx context.Context, token string) (scep.Secret, error) {
	if pin, ok := a.pins[token]; ok {
		return pin, nil
	}
	pin, err := a.read(ctx, token)
	if err != nil {
		return scep.Secret{}, err
	}
	if pin == "" {
		return scep.Secret{}, fmt.Errorf("none was typed: %w", backend.ErrPIN)
	}
	if a.pins == nil {
		a.pins = map[string]scep.Secret{}
	}
	a.pins[token] = scep.NewSecret(pin)
	return a.pins[token], nil
}

// read reads a line from the terminal, without showing it, or from the standard input.
func (a *asker) read(ctx context.Context, token string) (string, error) {
	tty, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
	if err == nil {
		defer tty.Close()
		err = stty(tty, "-echo")
	}
	if err != nil {
		fmt.Fprintf(a.stderr, "PIN of %s, from standard input, where it can be seen: ", token)
		if a.stdin == nil {
			a.stdin = bufio.NewReader(os.Stdin)
		}
		defer fmt.Fprintln(a.stderr)
		return line(ctx, a.stdin)
	}
	defer stty(tty, "echo")
	fmt.Fprintf(tty, "PIN of %s: ", token)
	defer fmt.Fprintln(tty)
	return line(ctx, bufio.NewReader(tty))
}

func stty(tty *os.File, mode string) error {
	cmd := exec.Command("stty", mode)
	cmd.Stdin = tty
	return cmd.Run()
}

// line reads a line, or leaves the reading behind when ctx ends.
func line(ctx context.Context, r *bufio.Reader) (string, error) {
	type result struct {
		text string
		err  error
	}
	done := make(chan result, 1)
	go func() {
		text, err := r.ReadString('\n')
		if errors.Is(err, io.EOF) && text != "" {
			err = nil
		}
		done <- result{strings.TrimRight(text, "\r\n"), err}
	}()
	select {
	case r := <-done:
		if r.err != nil {
			return "", fmt.Errorf("reading it: %w: %w", r.err, backend.ErrPIN)
		}
		return r.text, nil
	case <-ctx.Done():
		return "", context.Cause(ctx)
	}
}
