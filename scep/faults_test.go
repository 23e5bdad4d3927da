//go:build unix

package scep_test

import (
	"bufio"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/scepkit/scepkit/challenge"
	"github.com/scepkit/scepkit/depot/postgres"
	"github.com/scepkit/scepkit/scep"
	"github.com/scepkit/scepkit/scep/sceptest"
)

// The steps of one enrolment, in order, as a fault names them. "Reply" is the signature over
// the CertRep.
var steps = []string{"Get", "Validate", "Template", "Create", "Sign", "Update", "Confirm", "Confirmed", "Reply"}

// created is the step in which the record and the challenge change.
var created = slices.Index(steps, "Create")

// changes reports whether there is anything that can have happened when a step fails.
func changes(step string) bool { return step != "Get" && step != "Template" && step != "Reply" }

// faulty makes a handler whose every step is announced to on.
func faulty(t testing.TB, s store, on func(step string) (apply bool, err error)) (*scep.Handler, *scep.Identity, *challenge.OneTime) {
	t.Helper()
	ca := sceptest.NewCA(t)
	ra := sceptest.NewRA(t, ca)
	ra.Key = sceptest.Key{Signer: ra.Key, On: func(op string) error {
		if op != "Sign" {
			return nil
		}
		_, err := on("Reply")
		return err
	}}
	wrapped := &sceptest.Store{Spender: s, On: func(op string, rec *scep.Record) (bool, error) {
		switch {
		case op == "SpendChallenge":
			t.Error("a challenge was spent without its record")
		case op == "Update" && rec.State == scep.Issued && !rec.Unconfirmed:
			op = "Confirmed"
		}
		return on(op)
	}}
	oneTime := &challenge.OneTime{Store: wrapped}
	h, err := scep.New(scep.Config{
		CA: sceptest.CA{CA: ca, On: func(op string, _ *x509.Certificate) (bool, error) {
			if op != "Sign" {
				return false, nil
			}
			return on("Sign")
		}},
		RA:        ra,
		Depot:     wrapped,
		Challenge: sceptest.Challenge{Challenge: oneTime, On: func(op string, _ *scep.Request) (bool, error) { return on(op) }},
		Policy: scep.PolicyFunc(func(ctx context.Context, req *scep.Request) (*x509.Certificate, error) {
			if _, err := on("Template"); err != nil {
				return nil, err
			}
			return (&scep.Profile{}).Template(ctx, req)
		}),
		Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	return h, ra, oneTime
}

// TestFaults breaks each step once, in two ways: the step fails, and it fails but has happened
// all the same. Whatever the client does then, it ends up with one certificate, which is the
// only one.
func TestFaults(t *testing.T) {
	broken := errors.New("broken on purpose")
	for _, st := range stores {
		for _, step := range steps {
			for _, happened := range []bool{false, true} {
				if happened && !changes(step) {
					continue
				}
				for _, retry := range []string{"same message", "new message", "poll"} {
					name := fmt.Sprintf("%s/%s/happened=%v/%s", st.name, step, happened, retry)
					t.Run(name, func(t *testing.T) {
						t.Parallel()
						s := st.open(t)
						var armed atomic.Bool
						h, ra, _ := faulty(t, s, func(at string) (bool, error) {
							if at == step && armed.CompareAndSwap(true, false) {
								return happened, broken
							}
							return false, nil
						})
						from := ra.Certificate()
						secret, hash := mint(t, s)
						d := newDevice(t, sceptest.RSA(3), "faults", secret)
						first := d.pkcsReq(t, from)
						armed.Store(true)
						a := d.send(t, h, first, from)
						if armed.Load() {
							t.Fatal("the step was not reached")
						}
						switch {
						case step == "Sign" && a.status == "3":
						case step == "Update" && happened && a.status == "0": // it was read back
						case step != "Sign" && a.http == http.StatusServiceUnavailable:
						default:
							t.Fatalf("after the fault: %v", a)
						}
						before := slices.Index(steps, step) < created || slices.Index(steps, step) == created && !happened
						if rec := agree(t, s, hash); (rec == nil) != before {
							t.Fatalf("after the fault the record is %v", rec)
						}
						switch retry {
						case "same message":
							a = d.send(t, h, first, from)
						case "new message":
							a = d.send(t, h, d.pkcsReq(t, from), from)
						case "poll":
							a = d.send(t, h, d.certPoll(t, from), from)
							if a.failInfo == "2" { // nothing was written down: the client starts again
								a = d.send(t, h, first, from)
							}
						}
						if a.cert == nil {
							t.Fatalf("after the retry: %v", a)
						}
						oneCertificate(t, s, a.cert)
						agree(t, s, hash)
						if again := d.send(t, h, d.certPoll(t, from), from); again.cert == nil || !again.cert.Equal(a.cert) {
							t.Fatalf("a poll later: %v, want certificate %x", again, a.cert.SerialNumber)
						}
						// The challenge is spent, by this request and no other.
						other := newDevice(t, sceptest.RSA(4), "other", secret)
						if a := other.send(t, h, other.pkcsReq(t, from), from); a.failInfo != "2" {
							t.Fatalf("another with the same challenge: %v", a)
						}
					})
				}
			}
		}
	}
}

// TestTwentyAtOnce sends one message twenty times at once to two handlers over one depot.
func TestTwentyAtOnce(t *testing.T) {
	for _, st := range stores {
		t.Run(st.name, func(t *testing.T) {
			t.Parallel()
			s := st.open(t)
			through := func(string) (bool, error) { return false, nil }
			h1, ra, oneTime := faulty(t, s, through)
			h2, _, _ := faulty(t, s, through)
			d := newDevice(t, sceptest.RSA(3), "twenty", newChallenge(t, oneTime))
			msg := d.pkcsReq(t, ra.Certificate())
			answers := make([]answer, 20)
			var wg sync.WaitGroup
			for i := range answers {
				wg.Go(func() { answers[i] = d.send(t, []*scep.Handler{h1, h2}[i%2], msg, ra.Certificate()) })
			}
			wg.Wait()
			for _, a := range answers {
				if a.cert == nil || !a.cert.Equal(answers[0].cert) {
					t.Fatalf("%v, want the certificate of %v", a, answers[0])
				}
			}
			oneCertificate(t, s, answers[0].cert)
		})
	}
}

// TestOneChallengeHundredDevices uses one one-time challenge a hundred times at once.
func TestOneChallengeHundredDevices(t *testing.T) {
	for _, st := range stores {
		t.Run(st.name, func(t *testing.T) {
			t.Parallel()
			s := st.open(t)
			h, ra, _ := faulty(t, s, func(string) (bool, error) { return false, nil })
			secret, hash := mint(t, s)
			devices := make([]*device, 100)
			messages := make([][]byte, len(devices))
			base := newDevice(t, sceptest.RSA(3), "hundred", secret)
			for i := range devices {
				d := *base
				d.id = fmt.Sprintf("device %d", i) // another transaction: another request
				devices[i], messages[i] = &d, d.pkcsReq(t, ra.Certificate())
			}
			answers := make([]answer, len(devices))
			var wg sync.WaitGroup
			for i := range devices {
				wg.Go(func() { answers[i] = devices[i].send(t, h, messages[i], ra.Certificate()) })
			}
			wg.Wait()
			admitted := -1
			for i, a := range answers {
				switch {
				case a.cert != nil && admitted < 0:
					admitted = i
				case a.cert != nil:
					t.Fatalf("devices %d and %d were both admitted", admitted, i)
				case a.failInfo != "2":
					t.Fatal(a)
				}
			}
			if admitted < 0 {
				t.Fatal("nobody was admitted")
			}
			if a := devices[admitted].send(t, h, messages[admitted], ra.Certificate()); a.cert == nil || !a.cert.Equal(answers[admitted].cert) {
				t.Fatalf("the one that was admitted tries again: %v", a)
			}
			oneCertificate(t, s, answers[admitted].cert)
			agree(t, s, hash)
		})
	}
}

// TestKill9 kills the server, a process of its own, before and after each step.
func TestKill9(t *testing.T) {
	if os.Getenv(killAt) != "" {
		victim(t)
		return
	}
	for _, st := range []string{"SQLite", "PostgreSQL"} {
		for _, step := range steps {
			for _, when := range []string{"before", "after"} {
				if when == "after" && !changes(step) {
					continue // the same as before the next step
				}
				t.Run(st+"/"+step+"/"+when, func(t *testing.T) {
					t.Parallel()
					killAtStep(t, place(t, st), step, when)
				})
			}
		}
	}
}

// place returns the environment of a victim with a new store.
func place(t *testing.T, kind string) []string {
	if kind == "SQLite" {
		return []string{"SCEPTEST_DB=" + filepath.Join(t.TempDir(), "scep.db")}
	}
	c := newSchema(t)
	return []string{"SCEPTEST_PG=" + c.URL, "SCEPTEST_SCHEMA=" + c.Schema}
}

// openPlace opens what the environment names.
func openPlace(t *testing.T, getenv func(string) string) store {
	if url := getenv("SCEPTEST_PG"); url != "" {
		return openPostgres(t, postgres.Config{URL: url, Schema: getenv("SCEPTEST_SCHEMA")})
	}
	return openSQLite(t, getenv("SCEPTEST_DB"))
}

// killAtStep kills a server at a step, looks at what is left, and has another one finish.
func killAtStep(t *testing.T, env []string, step, when string) {
	s := openPlace(t, func(key string) string {
		for _, e := range env {
			if name, value, _ := strings.Cut(e, "="); name == key {
				return value
			}
		}
		return ""
	})
	secret, hash := mint(t, s)
	d := newDevice(t, sceptest.RSA(3), "kill", secret)
	ra := sceptest.NewRA(t, sceptest.NewCA(t)).Certificate()
	msg := d.pkcsReq(t, ra)

	url, wait := startVictim(t, env, step+" "+when)
	if resp, err := http.Post(url, "", strings.NewReader(string(msg))); err == nil {
		body, _ := io.ReadAll(resp.Body)
		t.Fatalf("the server answered %d %q and should be dead", resp.StatusCode, body)
	}
	if err := wait(); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Fatalf("the server ended with %v", err)
	}
	before := slices.Index(steps, step) < created || slices.Index(steps, step) == created && when == "before"
	if rec := agree(t, s, hash); (rec == nil) != before {
		t.Fatalf("when the server is dead the record is %v", rec)
	}

	url, _ = startVictim(t, env, "never")
	post := func(msg []byte) answer {
		resp, err := http.Post(url, "", strings.NewReader(string(msg)))
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return d.read(t, resp.StatusCode, body, ra)
	}
	a := post(msg)
	if a.cert == nil {
		t.Fatal(a)
	}
	if again := post(d.pkcsReq(t, ra)); again.cert == nil || !again.cert.Equal(a.cert) {
		t.Fatalf("asked again: %v, want %v", again, a)
	}
	oneCertificate(t, s, a.cert)
	agree(t, s, hash)
}

const killAt = "SCEPTEST_KILL_AT"

func startVictim(t *testing.T, env []string, at string) (url string, wait func() error) {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^TestKill9$")
	cmd.Env = append(append(os.Environ(), killAt+"="+at), env...)
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe() // the victim ends with its parent
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	wait = sync.OnceValue(cmd.Wait)
	t.Cleanup(func() { stdin.Close(); cmd.Process.Kill(); wait() })
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		t.Fatalf("the server did not start: %v", err)
	}
	return "http://" + strings.TrimSpace(line) + "/?operation=PKIOperation", wait
}

// victim serves until it comes to the step at which it kills itself, as the kernel would.
func victim(t *testing.T) {
	at, when, _ := strings.Cut(os.Getenv(killAt), " ")
	die := func() { syscall.Kill(os.Getpid(), syscall.SIGKILL); select {} }
	var passed atomic.Bool
	h, _, _ := faulty(t, openPlace(t, os.Getenv), func(step string) (bool, error) {
		if passed.Load() {
			die() // the step after the one that was to be the last
		}
		if step == at && when == "before" {
			die()
		}
		if step == at && when == "after" {
			passed.Store(true)
		}
		return false, nil
	})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	fmt.Println(l.Addr())
	go http.Serve(l, h)
	io.Copy(io.Discard, os.Stdin)
}
