// Package tpm uses private keys that a TPM 2.0 made and that never leave it.
//
// [Driver] is for programs that name keys by URI, as tpm:/etc/scep/ca.tpm?chain=/etc/scep/ca.pem.
// [Open] is for those that know that they want a TPM: it gives a [TPM], whose Create makes keys
// and whose Identity opens them.
//
// A key is a file in the format TSS2 PRIVATE KEY, which tpm2-openssl and others read and write.
// It is encrypted to a storage key that only its TPM has, so that a copy is of use neither to a
// thief nor as a backup on another computer: when the TPM is gone, or was cleared, so are its
// keys. Beside it, in a file of its own, is the authorization value, without which the TPM does
// not use the key.
//
// What a TPM is good for: RSA-2048 and P-256 always, RSA-3072 and P-384 often, RSA-4096 hardly
// ever. It does one thing at a time, and a chip takes a tenth of a second or more for an RSA
// signature. Where that is too slow for an RA, keep the CA's key in the TPM and the RA's in a
// file.
//
// # What the wire shows
//
// Commands that use a key run in a session whose secret is encrypted to the storage key; so are
// authorization values and decrypted keys. Somebody on the wire who is there from the beginning
// could answer with a storage key of his own. That gives him nothing on keys with an
// authorization value, as Create makes them, once they are made; to be safe when they are made,
// and for keys without one, give the name of the storage key: [Name.ParentName]. Without it, the
// one that a key was first used with is the one that it must have until it is opened again.
//
// # Sharing
//
// The kernel (/dev/tpmrm0) and Windows let many processes use the TPM. A TPM on a socket, or
// /dev/tpm0, belongs to one process at a time, and holds three keys at once: open it once, and
// open all keys with it. If it is full, what another process has left there is taken out.
package tpm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/scepkit/scepkit/backend"
)

// Config says which TPM to use. The zero Config is that of the computer.
type Config struct {
	// Device is a TPM device, as /dev/tpmrm0, or unix:/PATH, a socket that speaks the commands
	// of a TPM and nothing else, as swtpm has with --server type=unixio. If empty, /dev/tpmrm0
	// on Linux, the TPM Base Services on Windows; elsewhere there is none.
	Device string

	// Dial connects to the TPM in place of Device, if not nil. It is called again after every
	// error, and one connection is used at a time.
	Dial func(ctx context.Context) (io.ReadWriteCloser, error)

	// Timeout is how long an operation may take, with waiting for its turn, with retries, and
	// with connecting. If zero, 30 seconds. Create may take at least three minutes: chips take
	// long to find an RSA key.
	Timeout time.Duration
}

// A TPM is a connection to a TPM 2.0. It connects when it is first used, and again when the
// connection breaks or the TPM was restarted. Methods may be called concurrently; the TPM does
// one thing at a time, in the order of the calls.
type TPM struct {
	name    string
	alone   bool // nobody else uses the TPM now, and nobody takes out what programs have left there
	dial    func(ctx context.Context) (io.ReadWriteCloser, error)
	timeout time.Duration

	turn     chan struct{} // holds a token while nobody uses what follows it
	line     line
	held     held
	pings    uint16
	stuck    atomic.Int32 // commands that were abandoned and still run
	rest     *time.Timer  // puts the session away when nobody needs it
	closing  sync.Once
	closed   chan struct{} // closed by Close: no more operations
	kill     chan struct{} // closed by Close: give up the operation that runs
	finished chan struct{} // closed when Close is done
}

// errClosed is not a malformed block, so it must be one of backend's.
var errClosed = fmt.Errorf("the TPM was closed: %w", backend.ErrUnavailable)

// Open prepares the use of a TPM. It does not connect yet.
func Open(c Config) (*TPM, error) {
	if c.Timeout < 0 {
		return nil, fmt.Errorf("tpm: Config.Timeout is negative (%v)", c.Timeout)
	}
	if c.Timeout == 0 {
		c.Timeout = 30 * time.Second
	}
	t := &TPM{
		dial:     c.Dial,
		timeout:  c.Timeout,
		turn:     make(chan struct{}, 1),
		closed:   make(chan struct{}),
		kill:     make(chan struct{}),
		finished: make(chan struct{}),
	}
	t.turn <- struct{}{}
	device := c.Device
	if device == "" {
		device = defaultDevice
	}
	t.name = "TPM " + device
	path, socket := strings.CutPrefix(device, "unix:")
	switch {
	case c.Dial != nil:
		t.name = "TPM"
	case socket && path == "":
		return nil, errors.New("tpm: Config.Device is a socket without a name; write unix:/PATH")
	case socket:
		t.alone = true
		t.dial = func(ctx context.Context) (io.ReadWriteCloser, error) {
			return new(net.Dialer).DialContext(ctx, "unix", path)
		}
	case device == "":
		_, err := dialDevice(context.Background(), "")
		return nil, fmt.Errorf("tpm: %w", err)
	default:
		t.alone = strings.HasPrefix(device, "/dev/tpm") && !strings.HasPrefix(device, "/dev/tpmrm")
		t.dial = func(ctx context.Context) (io.ReadWriteCloser, error) { return dialDevice(ctx, device) }
	}
	return t, nil
}

// Check reports whether the TPM answers.
func (t *TPM) Check(ctx context.Context) error {
	_, err := run(ctx, t, t.timeout, func(o *op) (struct{}, error) { return struct{}{}, o.ping() })
	if err != nil {
		return fmt.Errorf("tpm: %s: %w", t.name, err)
	}
	return nil
}

// ping has the TPM do what only one in good health does, and what shows whether it answers this
// very command: the response is as long as asked for, and that is different each time.
func (o *op) ping() error {
	o.t.pings++
	n := 8 + o.t.pings%24
	rsp, err := tpm2.GetRandom{BytesRequested: n}.Execute(o)
	var rc tpm2.TPMRC
	switch {
	case err == nil && len(rsp.RandomBytes.Buffer) == int(n), errors.As(err, &rc) && noParameter(rc):
		return err
	case err == nil, errors.As(err, &rc):
		return errors.New("the TPM answers something else than it is asked")
	}
	return err
}

// noParameter reports whether rc can be the answer to a command without handles or sessions.
func noParameter(rc tpm2.TPMRC) bool {
	const format1 = 0x80
	return rc&format1 == 0 && (rc < tpm2.TPMRCReferenceH0 || rc > tpm2.TPMRCReferenceS6)
}

// closeGrace is how long Close waits for an operation that runs, and for the TPM to forget what
// was loaded into it.
const closeGrace = 2 * time.Second

// Close ends the use of the TPM and of all its keys, which from then on give errors. It takes
// what was loaded out of the TPM, and does not wait for one that hangs. Closing again does
// nothing.
func (t *TPM) Close() error {
	t.closing.Do(func() {
		defer close(t.finished)
		close(t.closed)
		grace := time.NewTimer(closeGrace)
		defer grace.Stop()
		select {
		case <-t.turn:
		case <-grace.C:
			close(t.kill)
			<-t.turn // soon: all that an operation waits for ends now
		}
		if t.rest != nil {
			t.rest.Stop()
		}
		o := &op{t: t, ctx: context.Background(), deadline: time.Now().Add(closeGrace)}
		t.forget(o)
		if conn := t.line.conn; conn != nil {
			t.line.conn = nil
			await(o, func() (struct{}, error) { return struct{}{}, conn.Close() }, func(struct{}) {})
		}
		// The turn is not given back: nobody uses the TPM any more.
	})
	<-t.finished
	return nil
}
