package scepclient

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/scepkit/scepkit/scep"
	"github.com/scepkit/scepkit/scep/sceptest"
)

// pendingUntil answers PENDING before message n.
func pendingUntil(n int) func(*query) string {
	return func(q *query) string {
		if q.number < n {
			return statusPending
		}
		return statusSuccess
	}
}

// waits records what the client would have slept.
func waits(c *Client) *[]time.Duration {
	var list []time.Duration
	c.wait = func(ctx context.Context, d time.Duration) error {
		list = append(list, d)
		return ctx.Err()
	}
	return &list
}

func TestPendingThenSuccess(t *testing.T) { // CLI-12
	l := newLiar(t)
	l.status = pendingUntil(3)
	c := l.client()
	c.RetryDelay = time.Minute
	slept := waits(c)
	var told []int
	c.OnPending = func(p *Pending, poll int, next time.Duration) {
		if next != time.Minute || p.TransactionID == "" {
			t.Errorf("told of %v", next)
		}
		told = append(told, poll)
	}
	res, err := c.Enroll(t.Context(), request())
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(told, []int{1, 2}) || !slices.Equal(*slept, []time.Duration{time.Minute, time.Minute}) {
		t.Errorf("told %v, slept %v", told, *slept)
	}
	asked := l.asked()
	if len(asked) != 3 {
		t.Fatalf("%d messages", len(asked))
	}
	nonces := map[string]bool{}
	for i, q := range asked {
		want := typeCertPoll
		if i == 0 {
			want = typePKCSReq
		}
		if q.msg.MessageType != want || string(q.msg.TransactionID) != res.TransactionID {
			t.Errorf("message %d has type %s and transaction ID %q", i, q.msg.MessageType, q.msg.TransactionID)
		}
		if !bytes.Equal(q.msg.Signer.Raw, asked[0].msg.Signer.Raw) {
			t.Errorf("message %d is signed by another certificate", i)
		}
		nonces[string(q.msg.SenderNonce)] = true
	}
	if len(nonces) != 3 {
		t.Error("nonces repeat")
	}
	want := sceptest.TLV(sceptest.TagSequence, l.ca.Certificate().RawSubject, asked[0].csr.RawSubject)
	if !bytes.Equal(asked[1].content, want) {
		t.Errorf("CertPoll holds %x, want %x", asked[1].content, want)
	}
}

func TestRetries(t *testing.T) { // CLI-12
	for _, test := range []struct{ retries, polls int }{{0, 3}, {1, 1}, {5, 5}, {-1, 0}} {
		l := newLiar(t)
		l.status = pendingUntil(100)
		c := l.client()
		c.Retries = test.retries
		slept := waits(c)
		_, err := c.Enroll(t.Context(), request())
		wantError(t, err, "waits for approval; go on with Poll")
		var pending *PendingError
		if !errors.As(err, &pending) || pending.Err != nil || !errors.Is(err, scep.ErrPending) {
			t.Errorf("error %#v", err)
		}
		if n := len(l.asked()) - 1; n != test.polls || len(*slept) != test.polls {
			t.Errorf("Retries %d: %d polls", test.retries, n)
		}
		for _, d := range *slept {
			if d != 10*time.Second {
				t.Errorf("slept %v", d)
			}
		}
	}
}

// CLI-21: waiting ends with the context, at once, and nothing is lost.
func TestCancelWhileWaiting(t *testing.T) {
	l := newLiar(t)
	l.status = pendingUntil(2)
	c := l.client()
	c.wait = nil // really
	c.RetryDelay = time.Hour
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	c.OnPending = func(*Pending, int, time.Duration) { cancel() }
	started := time.Now()
	_, err := c.Enroll(ctx, request())
	if time.Since(started) > 30*time.Second {
		t.Error("it took", time.Since(started))
	}
	var pending *PendingError
	if !errors.As(err, &pending) || !errors.Is(err, context.Canceled) {
		t.Fatalf("error %v", err)
	}

	// Days later, in another process.
	stored, err := json.Marshal(pending.Pending)
	if err != nil {
		t.Fatal(err)
	}
	for _, secret := range []string{"hunter2", "aHVudGVyMg"} {
		if bytes.Contains(stored, []byte(secret)) {
			t.Error("the handle has the challenge")
		}
	}
	var p Pending
	if err := json.Unmarshal(stored, &p); err != nil {
		t.Fatal(err)
	}
	later := &Client{wait: c.wait}
	res, err := later.Poll(t.Context(), &p, sceptest.RSA(0))
	if err != nil {
		t.Fatal(err)
	}
	if !equalKeys(res.Certificate.PublicKey, sceptest.RSA(0).Public()) || res.TransactionID != p.TransactionID {
		t.Error("another certificate or transaction")
	}
	asked := l.asked()
	if len(asked) != 2 || !bytes.Equal(asked[0].msg.Signer.Raw, asked[1].msg.Signer.Raw) {
		t.Errorf("%d messages, or another signer", len(asked))
	}
}

func TestPollIsHeldToTheSameCA(t *testing.T) {
	l := newLiar(t)
	l.status = pendingUntil(2)
	c := l.client()
	c.Retries = -1
	_, err := c.Enroll(t.Context(), request())
	var pending *PendingError
	if !errors.As(err, &pending) {
		t.Fatal(err)
	}
	p := pending.Pending

	stranger := sceptest.NewCA(t, sceptest.RSA(3))
	l.alter = func(q *query, m *sceptest.Message) { m.Key, m.Certificate = stranger.Key, stranger.Certificate().Raw }
	_, err = (&Client{}).Poll(t.Context(), p, sceptest.RSA(0))
	wantError(t, err, "not signed by")
	if !errors.Is(err, scep.ErrPending) {
		t.Error("a false reply lost the handle")
	}
	l.alter = nil

	_, err = (&Client{}).Poll(t.Context(), p, sceptest.RSA(1))
	wantError(t, err, "belongs to another key")
	_, err = (&Client{Time: func() time.Time { return time.Now().AddDate(20, 0, 0) }}).Poll(t.Context(), p, sceptest.RSA(0))
	wantError(t, err, "expired")
	for name, damage := range map[string]func(*Pending){
		"TransactionID": func(p *Pending) { p.TransactionID = "\x00" },
		"Signer":        func(p *Pending) { p.Signer = p.Signer[:9] },
		"PublicKey":     func(p *Pending) { p.PublicKey = nil },
		"CA":            func(p *Pending) { p.CA = nil },
		"Anchors":       func(p *Pending) { p.Anchors = [][]byte{{1}} },
	} {
		bad := *p
		damage(&bad)
		_, err = (&Client{}).Poll(t.Context(), &bad, sceptest.RSA(0))
		wantError(t, err, "Pending."+name)
	}
	_, err = (&Client{}).Poll(t.Context(), nil, sceptest.RSA(0))
	wantError(t, err, "needs a Pending")
	if _, err = (&Client{}).Poll(t.Context(), p, sceptest.RSA(0)); err != nil {
		t.Error(err)
	}
}

// What goes wrong while waiting does not end the wait, or at least leaves the handle.
func TestPollsSurviveTheNetwork(t *testing.T) {
	l := newLiar(t)
	l.status = pendingUntil(2)
	n := 0
	l.http = func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodPost {
			return false
		}
		n++
		switch n {
		case 2:
			hijack(t, w).Close()
		case 3:
			w.Header().Set("Retry-After", "120")
			w.WriteHeader(http.StatusServiceUnavailable)
		case 4:
			w.WriteHeader(http.StatusBadGateway)
		default:
			return false
		}
		return true
	}
	c := l.client()
	c.Retries = 4
	slept := waits(c)
	if _, err := c.Enroll(t.Context(), request()); err != nil {
		t.Fatal(err)
	}
	if want := []time.Duration{10 * time.Second, 10 * time.Second, 2 * time.Minute, 10 * time.Second}; !slices.Equal(*slept, want) {
		t.Errorf("slept %v, want %v", *slept, want)
	}
	n, c.Retries, l.queries = 0, 2, nil
	_, err := c.Enroll(t.Context(), request())
	wantError(t, err, "503")
	if !errors.Is(err, scep.ErrPending) {
		t.Error("the handle is lost")
	}
}

func TestRefusedWhileWaiting(t *testing.T) {
	l := newLiar(t)
	l.status = func(q *query) string {
		if q.number == 1 {
			return statusPending
		}
		return statusFailure
	}
	_, err := l.client().Enroll(t.Context(), request())
	if !errors.Is(err, scep.BadRequest) || errors.Is(err, scep.ErrPending) {
		t.Errorf("error %v", err)
	}
}

// CLI-23: an interrupted enrolment is begun anew.
func TestNewTransaction(t *testing.T) {
	l := newLiar(t)
	l.status = pendingUntil(100)
	c := l.client()
	c.Retries = -1
	for range 2 {
		if _, err := c.Enroll(t.Context(), request()); !errors.Is(err, scep.ErrPending) {
			t.Fatal(err)
		}
	}
	a, b := l.asked()[0], l.asked()[1]
	if b.msg.MessageType != typePKCSReq || bytes.Equal(a.msg.TransactionID, b.msg.TransactionID) {
		t.Errorf("second message has type %s and transaction ID %q", b.msg.MessageType, b.msg.TransactionID)
	}
}

func TestPendingHidesPassword(t *testing.T) {
	l := newLiar(t)
	l.status = pendingUntil(100)
	c := l.client()
	c.Retries = -1
	c.URL = strings.Replace(c.URL, "http://", "http://user:geheim@", 1)
	_, err := c.Enroll(t.Context(), request())
	var pending *PendingError
	if !errors.As(err, &pending) || strings.Contains(pending.Pending.URL, "geheim") || pending.Pending.URL != l.URL {
		t.Errorf("URL is %q, %v", pending.Pending.URL, err)
	}
}

func TestGetCertPending(t *testing.T) {
	l := newLiar(t)
	l.status = pendingUntil(100)
	_, err := l.client().GetCert(t.Context(), nil, l.ca.Certificate().SerialNumber, l.ca.Certificate(), l.ca.Key)
	wantError(t, err, "says PENDING")
	l.status = nil
	_, err = l.client().GetCert(t.Context(), []byte{0x30, 0}, l.ca.Certificate().SerialNumber, l.ca.Certificate(), l.ca.Key)
	wantError(t, err, "holds another certificate")
}
