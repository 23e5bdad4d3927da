package hsmtest

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"
)

// A Chip is a TPM 2.0: swtpm behind a forwarder that takes one command at a time from any number
// of connections. Its methods may be called concurrently. There is no resource manager: three
// transient objects fit, and what a connection loads stays when it closes.
type Chip struct {
	t   testing.TB
	dir string // swtpm's state

	bus sync.Mutex // held while a command is with the TPM

	mu        sync.Mutex
	proc      *process // nil while it has no power
	conn      net.Conn // to proc
	clients   map[net.Conn]bool
	sockets   map[string]net.Listener // by path; nil while it has no power
	taps      map[*[]byte]bool
	hangs     map[chan struct{}]bool // closed by release
	delay     time.Duration
	commands  int
	injectRC  uint32
	inject    int
	failIO    int
	desync    int
	forwarder sync.WaitGroup
}

var errNoPower = errors.New("hsmtest: the TPM has no power")

// TPM starts a TPM of its own for the test, empty and started up (TPM2_Startup).
func TPM(t testing.TB) *Chip {
	t.Helper()
	policy(t)
	program(t, "swtpm", "swtpm")
	c := &Chip{t: t, dir: t.TempDir(), clients: map[net.Conn]bool{}, sockets: map[string]net.Listener{},
		taps: map[*[]byte]bool{}, hangs: map[chan struct{}]bool{}}
	t.Cleanup(func() {
		c.Kill()
		c.mu.Lock()
		for h := range c.hangs {
			close(h)
			delete(c.hangs, h)
		}
		c.mu.Unlock()
		c.forwarder.Wait()
	})
	c.Start()
	return c
}

// Dial returns a connection that carries raw commands and responses, as a device file does. It
// fails while the TPM has no power.
func (c *Chip) Dial(ctx context.Context) (net.Conn, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	ours, theirs := net.Pipe()
	if !c.serve(theirs) {
		return nil, errNoPower
	}
	return ours, nil
}

// Listen returns the path of a Unix socket that does what [Chip.Dial] does, for another process.
// Without power nothing listens there; [Chip.Start] listens again.
func (c *Chip) Listen() string {
	c.t.Helper()
	path := filepath.Join(shortDir(c.t), "tpm")
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sockets[path] = nil
	if c.proc != nil {
		c.listen(path)
	}
	return path
}

// listen is called with mu held.
func (c *Chip) listen(path string) {
	l, err := net.Listen("unix", path)
	if err != nil {
		c.t.Errorf("hsmtest: %v", err)
		return
	}
	c.sockets[path] = l
	c.forwarder.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			c.serve(conn)
		}
	})
}

// Start gives power to a TPM that was killed, with the state that it had.
func (c *Chip) Start() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.proc != nil {
		return
	}
	if err := c.power(); err != nil {
		c.t.Errorf("hsmtest: swtpm: %v", err)
		return
	}
	for path := range c.sockets {
		c.listen(path)
	}
}

// power starts swtpm. It is called with mu held.
func (c *Chip) power() error {
	conn, theirs, err := socketpair()
	if err != nil {
		return err
	}
	defer theirs.Close()
	cmd := exec.Command("swtpm", "socket", "--tpm2", "--tpmstate", "dir="+c.dir, "--fd", "3",
		"--flags", "not-need-init,startup-clear")
	cmd.ExtraFiles = []*os.File{theirs}
	if c.proc, err = spawn(cmd); err != nil {
		conn.Close()
		return err
	}
	c.conn = conn
	return nil
}

// Kill takes the power away, at once, even amid a command. All connections close.
func (c *Chip) Kill() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for path, l := range c.sockets {
		if l != nil {
			l.Close()
			c.sockets[path] = nil
		}
	}
	for conn := range c.clients {
		conn.Close()
	}
	c.off()
}

// off is called with mu held.
func (c *Chip) off() {
	if c.proc != nil {
		c.conn.Close()
		c.proc.kill()
		c.proc = nil
	}
}

// Restart resets the TPM between two commands: what was loaded is gone, connections stay. An
// orderly one is announced to the TPM (TPM2_Shutdown); one that is not may count as a failed
// attempt against the authorization of keys, as a loss of power does.
func (c *Chip) Restart(orderly bool) {
	c.bus.Lock()
	defer c.bus.Unlock()
	if orderly {
		c.own("TPM2_Shutdown", []byte{0x80, 1, 0, 0, 0, 12, 0, 0, 1, 0x45, 0, 0})
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.proc == nil {
		c.t.Errorf("hsmtest: Restart: %v", errNoPower)
		return
	}
	c.off()
	if err := c.power(); err != nil {
		c.t.Errorf("hsmtest: swtpm: %v", err)
	}
}

// Clear makes another storage seed (TPM2_Clear): no key of the owner's hierarchy loads again.
func (c *Chip) Clear() {
	c.bus.Lock()
	defer c.bus.Unlock()
	c.own("TPM2_Clear", []byte{0x80, 2, 0, 0, 0, 27, 0, 0, 1, 0x26, 0x40, 0, 0, 0x0c, // with platform authorization
		0, 0, 0, 9, 0x40, 0, 0, 9, 0, 0, 0, 0, 0})
}

// own makes a command of the test's own, which is neither counted nor tapped. It is called with bus held.
func (c *Chip) own(name string, command []byte) {
	const retry = 0x922
	for {
		response, err := c.exchange(command)
		if err == nil && code(response) == retry {
			continue
		}
		if err == nil && code(response) != 0 {
			err = fmt.Errorf("the TPM answers %#x", code(response))
		}
		if err != nil {
			c.t.Errorf("hsmtest: %s: %v", name, err)
		}
		return
	}
}

// code returns the response code.
func code(response []byte) uint32 { return binary.BigEndian.Uint32(response[6:]) }

// Tap records all bytes on the bus, commands and responses, from now until stop, which returns them.
func (c *Chip) Tap() (stop func() []byte) {
	tap := new([]byte)
	c.mu.Lock()
	c.taps[tap] = true
	c.mu.Unlock()
	return func() []byte {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.taps, tap)
		return slices.Clone(*tap)
	}
}

// Hang has each command wait before it gets to the TPM, until release is called or the test
// ends. [Chip.Commands] tells when one has arrived.
func (c *Chip) Hang() (release func()) {
	h := make(chan struct{})
	c.mu.Lock()
	c.hangs[h] = true
	c.mu.Unlock()
	release = func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.hangs[h] {
			delete(c.hangs, h)
			close(h)
		}
	}
	c.t.Cleanup(release) // before the cleanups, registered earlier, that wait for the command
	return release
}

// Delay has each command wait for d before it gets to the TPM.
func (c *Chip) Delay(d time.Duration) { c.set(func() { c.delay = d }) }

// Commands returns how many commands have arrived, answered or not.
func (c *Chip) Commands() (n int) {
	c.set(func() { n = c.commands })
	return n
}

// Inject answers the next n commands with the response code rc; the TPM does not see them. If n
// is negative it does so for ever.
func (c *Chip) Inject(rc uint32, n int) { c.set(func() { c.injectRC, c.inject = rc, n }) }

// FailIO closes the connection amid the response to the next n commands.
func (c *Chip) FailIO(n int) { c.set(func() { c.failIO = n }) }

// Desync makes the next connection with a command, not its first, one response late: that
// command and each after it on the connection gets the response to the command before.
func (c *Chip) Desync() { c.set(func() { c.desync++ }) }

func (c *Chip) set(f func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f()
}

// take counts one of n down and says whether there was one. It is called with mu held.
func take(n *int) bool {
	if *n > 0 {
		*n--
		return true
	}
	return *n < 0
}

// serve answers a connection in the background. Without power it closes it and returns false.
func (c *Chip) serve(conn net.Conn) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.proc == nil {
		conn.Close()
		return false
	}
	c.clients[conn] = true
	c.forwarder.Go(func() {
		defer c.set(func() { delete(c.clients, conn) })
		defer conn.Close()
		var last []byte // response
		late := false
		for {
			command, err := frame(conn)
			if err != nil {
				return
			}
			response, err := c.answer(command)
			if err != nil {
				return
			}
			cut := false
			c.set(func() {
				cut = take(&c.failIO)
				late = late || last != nil && take(&c.desync)
			})
			if late {
				response, last = last, response
			} else {
				last = response
			}
			if cut {
				response = response[:len(response)/2]
			}
			if _, err := conn.Write(response); err != nil || cut {
				return
			}
		}
	})
	return true
}

// answer returns the response to a command that has arrived.
func (c *Chip) answer(command []byte) ([]byte, error) {
	c.mu.Lock()
	c.commands++
	delay, injected, rc := c.delay, take(&c.inject), c.injectRC
	c.mu.Unlock()
	time.Sleep(delay)
	for {
		var hang chan struct{}
		c.set(func() {
			for h := range c.hangs {
				hang = h
			}
		})
		if hang == nil {
			break
		}
		<-hang
	}
	if injected {
		return binary.BigEndian.AppendUint32([]byte{0x80, 1, 0, 0, 0, 10}, rc), nil
	}
	c.bus.Lock()
	defer c.bus.Unlock()
	c.record(command)
	response, err := c.exchange(command)
	c.record(response)
	return response, err
}

func (c *Chip) record(b []byte) {
	c.set(func() {
		for tap := range c.taps {
			*tap = append(*tap, b...)
		}
	})
}

// exchange has the TPM answer a command. It is called with bus held.
func (c *Chip) exchange(command []byte) ([]byte, error) {
	c.mu.Lock()
	conn, power := c.conn, c.proc != nil
	c.mu.Unlock()
	if !power {
		return nil, errNoPower
	}
	if _, err := conn.Write(command); err != nil {
		return nil, err
	}
	return frame(conn)
}

// frame reads one command or response; its length is in the header.
func frame(r io.Reader) ([]byte, error) {
	b := make([]byte, 10)
	if _, err := io.ReadFull(r, b); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(b[2:])
	if n < 10 || n > 1<<16 {
		return nil, fmt.Errorf("hsmtest: a TPM message of %d bytes", n)
	}
	b = append(b, make([]byte, n-10)...)
	_, err := io.ReadFull(r, b[10:])
	return b, err
}
