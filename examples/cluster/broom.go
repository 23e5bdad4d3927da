package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

// A broom is a child that deletes a temporary folder when this process was killed, and nobody else
// would. It has no other work.
func newBroom(dir string) *child {
	return &child{name: "broom", args: []string{"broom", dir}, log: os.Stderr, kill: func(_ *exec.Cmd, stdin io.Writer) error {
		_, err := io.WriteString(stdin, leaveOrder)
		return err
	}}
}

// leaveOrder, read by sweep, has it leave the folder to others.
const leaveOrder = "leave\n"

// sweepTime is how long the others, who end when this process does, may take for it.
const sweepTime = 30 * time.Second

// sweep deletes the folder once stdin has ended without leaveOrder, and the database in it has ended.
func sweep(stdin io.Reader, dir string) error {
	if line, _ := bufio.NewReader(stdin).ReadString('\n'); line == leaveOrder {
		return nil
	}
	var err error
	for deadline := time.Now().Add(sweepTime); time.Now().Before(deadline); time.Sleep(200 * time.Millisecond) {
		if atWork(filepath.Join(dir, "postgres")) { // it is still ending
			err = errors.New("the database in it does not end")
			continue
		}
		// Once more than needed: a program that was just starting may have made a file meanwhile.
		if _, err = os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		err = os.RemoveAll(dir)
	}
	if err != nil {
		return fmt.Errorf("%s is left: %w", dir, err)
	}
	return nil
}
