package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"sync"
	"syscall"
	"time"
)

// A child is a process that runs this program with other arguments. It has a pipe for its
// standard input, and ends in order when that is closed: also when this process is killed.
type child struct {
	name string
	args []string
	env  []string
	log  io.Writer

	kill func(*exec.Cmd, io.Writer) error // ends it as kill -9 does
	said func(line string)                // told each line that it prints, and "" when it ends; may be nil

	mu    sync.Mutex
	life  *life // the one under way, or nil
	cpu   time.Duration
	kills int
	ended error // how it ended last, without having been told to
	fell  int   // how often it did that
}

// A life of a child.
type life struct {
	cmd   *exec.Cmd
	stdin io.WriteCloser
	told  bool          // to end
	over  chan struct{} // closed at its end
}

// errEnded is how a child ends that has come to the end of its work.
var errEnded = errors.New("ended by itself")

// start starts the child, unless it runs.
func (c *child) start() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.life != nil {
		return nil
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	l := &life{cmd: exec.Command(self, c.args...), over: make(chan struct{})}
	l.cmd.Env = append(os.Environ(), c.env...)
	l.cmd.Stderr = c.log
	apart(l.cmd)
	if l.stdin, err = l.cmd.StdinPipe(); err != nil {
		return err
	}
	stdout, err := l.cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := l.cmd.Start(); err != nil {
		return fmt.Errorf("%s: %w", c.name, err)
	}
	c.life = l
	go c.watch(l, stdout)
	return nil
}

// watch sees a life to its end.
func (c *child) watch(l *life, stdout io.Reader) {
	for lines := bufio.NewScanner(stdout); lines.Scan(); {
		if c.said != nil {
			c.said(lines.Text())
		}
	}
	err := l.cmd.Wait()
	l.stdin.Close()
	if c.said != nil {
		c.said("")
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cpu += l.cmd.ProcessState.UserTime() + l.cmd.ProcessState.SystemTime()
	if !l.told {
		c.fell++
		if c.ended = err; err == nil {
			c.ended = errEnded
		}
	}
	c.life = nil
	close(l.over)
}

// slay kills the child, and returns whether there was one to kill.
func (c *child) slay() bool {
	c.mu.Lock()
	l := c.life
	if l == nil || l.told {
		c.mu.Unlock()
		return false
	}
	l.told = true
	c.kills++
	c.mu.Unlock()
	if err := c.kill(l.cmd, l.stdin); err != nil {
		l.cmd.Process.Kill()
	}
	<-l.over
	return true
}

// stop ends the child in order, and waits for that.
func (c *child) stop() error {
	c.mu.Lock()
	l := c.life
	if l != nil {
		l.told = true
	}
	c.mu.Unlock()
	if l == nil {
		return nil
	}
	l.stdin.Close()
	select {
	case <-l.over:
		return nil
	case <-time.After(time.Minute):
		l.cmd.Process.Kill()
		<-l.over
		return fmt.Errorf("%s did not end when told to, and was killed", c.name)
	}
}

// state returns whether the child runs, and how it ended if it did so by itself.
func (c *child) state() (runs bool, ended error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.life != nil, c.ended
}

// killProcess is for children that are one process.
func killProcess(cmd *exec.Cmd, _ io.Writer) error { return cmd.Process.Kill() }

// wait waits for a child that ends by itself.
func (c *child) wait(ctx context.Context) error {
	c.mu.Lock()
	l := c.life
	c.mu.Unlock()
	if l == nil {
		return nil
	}
	select {
	case <-l.over:
		return nil
	case <-ctx.Done():
		return errors.Join(ctx.Err(), c.stop())
	}
}

// childCommand is what a child does.
func childCommand(name string, args []string) error {
	// ^C in a terminal reaches every process that was started from it, and the parent knows best
	// when to end.
	signal.Ignore(os.Interrupt)
	switch name {
	case "keeper":
		return keep(os.Stdin, args)
	case "probe":
		return probe(args[0])
	case "broom":
		return sweep(os.Stdin, args[0])
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	go func() {
		io.Copy(io.Discard, os.Stdin)
		stop()
	}()
	return replicaCommand(ctx, args)
}
