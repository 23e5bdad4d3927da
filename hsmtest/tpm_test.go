package hsmtest

import (
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"
)

var getRandom = []byte{0x80, 1, 0, 0, 0, 12, 0, 0, 1, 0x7b, 0, 8}

func dial(t *testing.T, c *Chip) net.Conn {
	t.Helper()
	conn, err := c.Dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// do makes a command, again while the TPM asks for that.
func do(t *testing.T, conn io.ReadWriter, command []byte) []byte {
	t.Helper()
	for {
		if _, err := conn.Write(command); err != nil {
			t.Fatal(err)
		}
		response, err := frame(conn)
		if err != nil {
			t.Fatal(err)
		}
		if code(response) != 0x922 {
			return response
		}
	}
}

// random wants eight random bytes.
func random(t *testing.T, conn io.ReadWriter) []byte {
	t.Helper()
	response := do(t, conn, getRandom)
	if code(response) != 0 || len(response) != 20 {
		t.Fatalf("the response is %x", response)
	}
	return response
}

// until waits for something that is bound to happen.
func until(f func() bool) {
	for !f() {
		time.Sleep(time.Millisecond)
	}
}

// primary makes the storage key of the owner (TPM2_CreatePrimary, ECC P-256), or fails. Its
// public part hangs on the seed alone.
func primary(t *testing.T, conn io.ReadWriter) []byte {
	t.Helper()
	public := []byte{0, 0x23, 0, 0x0b, 0, 3, 0, 0x72, 0, 0, // ECC, SHA-256, restricted | decrypt | userWithAuth | noDA | fixed
		0, 6, 0, 0x80, 0, 0x43, 0, 0x10, 0, 3, 0, 0x10, 0, 0, 0, 0} // AES-128-CFB, no scheme, P-256, no KDF, empty point
	command := []byte{0x80, 2, 0, 0, 0, 0, 0, 0, 1, 0x31, 0x40, 0, 0, 1, // by the owner
		0, 0, 0, 9, 0x40, 0, 0, 9, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, byte(len(public))}
	command = append(append(command, public...), 0, 0, 0, 0, 0, 0)
	binary.BigEndian.PutUint32(command[2:], uint32(len(command)))
	response := do(t, conn, command)
	if code(response) != 0 {
		t.Fatalf("TPM2_CreatePrimary: %#x", code(response))
	}
	handle := response[10:14]
	flush := append([]byte{0x80, 1, 0, 0, 0, 14, 0, 0, 1, 0x65}, handle...)
	if r := do(t, conn, flush); code(r) != 0 {
		t.Fatalf("TPM2_FlushContext: %#x", code(r))
	}
	n := binary.BigEndian.Uint16(response[18:])
	return response[20 : 20+n]
}

func TestTPMRestart(t *testing.T) {
	c := TPM(t)
	conn := dial(t, c)
	key := primary(t, conn)
	for _, orderly := range []bool{true, false} {
		c.Restart(orderly)
		random(t, conn)
		if !bytes.Equal(primary(t, conn), key) {
			t.Errorf("orderly %v: the seed changed", orderly)
		}
	}
	c.Clear()
	if bytes.Equal(primary(t, conn), key) {
		t.Error("the seed is the same after Clear")
	}
}

func TestTPMKill(t *testing.T) {
	c := TPM(t)
	conn, path := dial(t, c), c.Listen()
	key := primary(t, conn)
	c.Kill()
	if _, err := conn.Write(getRandom); err == nil {
		t.Error("a connection outlives the power")
	}
	if _, err := c.Dial(t.Context()); err == nil {
		t.Error("Dial works without power")
	}
	if _, err := net.Dial("unix", path); err == nil {
		t.Error("the socket listens without power")
	}
	c.Start()
	c.Start()
	outside, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer outside.Close()
	random(t, outside)
	if !bytes.Equal(primary(t, dial(t, c)), key) {
		t.Error("the seed changed")
	}
}

func TestTPMTap(t *testing.T) {
	c := TPM(t)
	conn := dial(t, c)
	random(t, conn)
	stop := c.Tap()
	got := random(t, conn)
	tapped := stop()
	random(t, conn)
	if want := append(bytes.Clone(getRandom), got...); !bytes.Equal(tapped, want) {
		t.Errorf("tapped %x, want %x", tapped, want)
	}
	if again := stop(); !bytes.Equal(again, tapped) {
		t.Error("the tap went on")
	}
}

func TestTPMHang(t *testing.T) {
	c := TPM(t)
	conn := dial(t, c)
	random(t, conn)
	n, tap, release := c.Commands(), c.Tap(), c.Hang()
	if _, err := conn.Write(getRandom); err != nil {
		t.Fatal(err)
	}
	until(func() bool { return c.Commands() == n+1 })
	if b := tap(); len(b) != 0 {
		t.Errorf("on the bus: %x", b)
	}
	release()
	release()
	if r, err := frame(conn); err != nil || code(r) != 0 {
		t.Errorf("the response is %x (%v)", r, err)
	}
	c.Delay(20 * time.Millisecond)
	start := time.Now()
	random(t, conn)
	if d := time.Since(start); d < 20*time.Millisecond {
		t.Errorf("a command took %v", d)
	}
	c.Hang() // and the test ends
	if _, err := conn.Write(getRandom); err != nil {
		t.Fatal(err)
	}
}

func TestTPMFaults(t *testing.T) {
	c := TPM(t)
	conn := dial(t, c)
	random(t, conn)
	c.Inject(0x921, 2)
	for _, want := range []uint32{0x921, 0x921, 0} {
		if r := do(t, conn, getRandom); code(r) != want {
			t.Errorf("the response code is %#x, want %#x", code(r), want)
		}
	}

	c.Desync()
	first := random(t, dial(t, c)) // a first command has nothing before it
	before := random(t, conn)      // the command before was answered with the same bytes
	selfTest := []byte{0x80, 1, 0, 0, 0, 11, 0, 0, 1, 0x43, 1}
	if r := do(t, conn, selfTest); len(r) != 20 || bytes.Equal(r, before) || bytes.Equal(r, first) {
		t.Errorf("TPM2_SelfTest is answered %x, want the random bytes of the command before", r)
	}
	if r := do(t, conn, getRandom); len(r) != 10 {
		t.Errorf("TPM2_GetRandom is answered %x, want the response to TPM2_SelfTest", r)
	}
	fresh := dial(t, c)
	random(t, fresh)

	c.FailIO(1)
	if _, err := fresh.Write(getRandom); err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(fresh); err != nil || len(b) == 0 || len(b) >= 20 {
		t.Errorf("read %x (%v), want half a response", b, err)
	}
	random(t, dial(t, c))
}

// Many connections share one TPM, and many TPMs run at once.
func TestTPMParallel(t *testing.T) {
	var wg sync.WaitGroup
	for range 3 {
		c := TPM(t)
		for range 4 {
			conn := dial(t, c)
			wg.Go(func() {
				for range 20 {
					if _, err := conn.Write(getRandom); err != nil {
						t.Error(err)
						return
					}
					if r, err := frame(conn); err != nil || code(r) != 0 && code(r) != 0x922 {
						t.Errorf("the response is %x (%v)", r, err)
						return
					}
				}
			})
		}
	}
	wg.Wait()
}

func TestTurn(t *testing.T) {
	got := end(t, func(v testing.TB) {
		remoteTurn.take(t, "Remote")
		remoteTurn.take(v, "Remote")
	})
	if !strings.Contains(got, "already has the one Remote") {
		t.Errorf("a second Remote: %q", got)
	}
}
