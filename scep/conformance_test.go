package scep_test

import (
	"bufio"
	"context"
	"crypto/rsa"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/scepkit/scepkit/depot"
	"github.com/scepkit/scepkit/scep"
	"github.com/scepkit/scepkit/scep/sceptest"
)

// conformanceIDs are the cases that the tables must have, each in the one that is named like it.
// M follows from a MUST of RFC 8894, S from a SHOULD or from its prose, T is a tolerance that
// clients in the field need, and P is a decision of this package's.
var conformanceIDs = strings.Fields(`
	CAP-01 CAP-02 CAP-03 CAP-04 CAP-05 CAP-06 CAP-07 CAP-08 CAP-09 CAP-10 CAP-11 CAP-12 CAP-13 CAP-14
	CAC-01 CAC-02 CAC-03 CAC-04 CAC-05 CAC-06 CAC-07 CAC-08 CAC-09 CAC-10 CAC-11
	HTP-01 HTP-02 HTP-03 HTP-04 HTP-05 HTP-06 HTP-07 HTP-08 HTP-09 HTP-10 HTP-11 HTP-12 HTP-13 HTP-14
	HTP-15 HTP-16 HTP-17 HTP-18
	GET-01 GET-02 GET-03 GET-04 GET-05 GET-06 GET-07 GET-08 GET-09 GET-10
	ENR-01 ENR-02 ENR-03 ENR-04 ENR-05 ENR-06 ENR-07 ENR-08 ENR-09 ENR-10 ENR-11 ENR-12
	CRY-01 CRY-02 CRY-03 CRY-04 CRY-05 CRY-06 CRY-07 CRY-08 CRY-09 CRY-10 CRY-11 CRY-12 CRY-13 CRY-14
	CRY-15 CRY-16
	CMS-01 CMS-02 CMS-03 CMS-04 CMS-05 CMS-06 CMS-07 CMS-08 CMS-09 CMS-10 CMS-11 CMS-12 CMS-13 CMS-14
	CMS-15 CMS-16 CMS-17 CMS-18 CMS-19 CMS-20 CMS-21 CMS-22
	SGN-01 SGN-02 SGN-03 SGN-04 SGN-05 SGN-06 SGN-07 SGN-08 SGN-09
	ATT-01 ATT-02 ATT-03 ATT-04 ATT-05 ATT-06 ATT-07 ATT-08 ATT-09 ATT-10 ATT-11 ATT-12 ATT-13 ATT-14
	FAI-01 FAI-02 FAI-03 FAI-04 FAI-05 FAI-06 FAI-07 FAI-08 FAI-09 FAI-10 FAI-11 FAI-12 FAI-13
	POL-01 POL-02 POL-03 POL-04 POL-05 POL-06 POL-07 POL-08 POL-09 POL-10 POL-11 POL-12
	RTX-01 RTX-02 RTX-03 RTX-04 RTX-05 RTX-06
	REN-01 REN-02 REN-03 REN-04 REN-05 REN-06 REN-07 REN-08 REN-09 REN-10 REN-11 REN-12 REN-13 REN-14
	CRT-01 CRT-02 CRT-03 CRT-05 CRL-01 CRL-02 CRL-03 CRL-04 NXT-01 NXT-02 NXT-03 NXT-04 NXT-05 NXT-06
	PWR-01 PWR-02 PWR-03 PWR-04 PWR-05 PWR-06
	ROB-01 ROB-02 ROB-03 ROB-05 ROB-06
`)

// conformanceTables are the prefixes of the ids; each has a test TestConformance with its name.
var conformanceTables = strings.Fields("CAP CAC HTP GET ENR CRY CMS SGN ATT FAI POL RTX REN CRT CRL NXT PWR ROB")

// A table runs the cases of one prefix, in parallel, and fails if one is missing.
type table struct {
	t      *testing.T
	prefix string
	mu     sync.Mutex
	ran    map[string]bool
}

func newTable(t *testing.T, prefix string) *table {
	t.Parallel()
	c := &table{t: t, prefix: prefix, ran: map[string]bool{}}
	t.Cleanup(func() {
		listed := 0
		for _, id := range conformanceIDs {
			if strings.HasPrefix(id, prefix+"-") {
				listed++
				if !c.ran[id] {
					t.Errorf("%s did not run", id)
				}
				delete(c.ran, id)
			}
		}
		if listed == 0 {
			t.Errorf("no case is listed for %s", prefix)
		}
		for id := range c.ran {
			t.Errorf("%s is not listed", id)
		}
	})
	return c
}

// run runs one case. One that skips has not run.
func (c *table) run(id string, f func(t *testing.T)) {
	c.mu.Lock()
	c.ran[id] = true
	c.mu.Unlock()
	c.t.Run(id, func(t *testing.T) {
		t.Parallel()
		t.Cleanup(func() {
			if t.Skipped() {
				c.mu.Lock()
				defer c.mu.Unlock()
				delete(c.ran, id)
			}
		})
		f(t)
	})
}

func TestConformanceIDs(t *testing.T) {
	for _, id := range conformanceIDs {
		known := false
		for _, prefix := range conformanceTables {
			known = known || strings.HasPrefix(id, prefix+"-")
		}
		if !known {
			t.Errorf("%s belongs to no table", id)
		}
	}
}

// unreadable is what all that is wrong inside an envelope is answered with.
const unreadable = "the request could not be read"

var deviceCount struct {
	sync.Mutex
	n int
}

// newConformer returns a device with a name, and so with a request, of its own.
func newConformer(srv *sceptest.Server) *sceptest.Device {
	deviceCount.Lock()
	defer deviceCount.Unlock()
	deviceCount.n++
	return withKey(srv, sceptest.RSA(deviceCount.n%5), fmt.Sprintf("device %d", deviceCount.n))
}

func withKey(srv *sceptest.Server, key *rsa.PrivateKey, name string) *sceptest.Device {
	d := sceptest.NewDevice(srv.URL, key, name)
	d.TransactionID = "transaction of " + name
	return d
}

// wantOK wants SUCCESS.
func wantOK(t *testing.T, r *sceptest.Reply) {
	t.Helper()
	if r.Certificate == nil {
		t.Fatalf("answer is %v, not SUCCESS", r)
	}
}

// wantFail wants FAILURE with this failInfo and, if text is not empty, this failInfoText.
func wantFail(t *testing.T, r *sceptest.Reply, want scep.FailInfo, text string) {
	t.Helper()
	if info, refused := r.Refusal(); !refused || info != want || text != "" && r.FailInfoText != text {
		t.Errorf("answer is %v, not FAILURE %v %q", r, want, text)
	}
	if len(r.FailInfoText) > 200 {
		t.Errorf("failInfoText has %d bytes", len(r.FailInfoText))
	}
}

func wantPending(t *testing.T, r *sceptest.Reply) {
	t.Helper()
	if r.Status != sceptest.StatusPending {
		t.Errorf("answer is %v, not PENDING", r)
	}
}

// wantHTTP wants an answer that is no CertRep.
func wantHTTP(t *testing.T, r *sceptest.Reply, status int) {
	t.Helper()
	if r.StatusCode != status {
		t.Errorf("answer is %v, not HTTP %d", r, status)
	}
	if got := r.Header.Get("Content-Type"); strings.HasPrefix(got, "application/x-") {
		t.Errorf("Content-Type of HTTP %d is %q", r.StatusCode, got)
	}
}

// records returns what a server's depot has.
func records(t *testing.T, srv *sceptest.Server) []*scep.Record {
	t.Helper()
	d, ok := srv.Config.Depot.(*depot.Memory)
	if !ok {
		t.Fatalf("Depot is a %T", srv.Config.Depot)
	}
	all, err := d.List(context.Background(), scep.Query{Limit: 1 << 20}) // t.Context has ended when cleaning up
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// wantNothingIssued wants a depot without certificates.
func wantNothingIssued(t *testing.T, srv *sceptest.Server) {
	t.Helper()
	for _, rec := range records(t, srv) {
		if rec.State != scep.Pending {
			t.Errorf("depot has a record of %q that is %v", rec.TransactionID, rec.State)
		}
	}
}

// rawHTTP writes request on a connection of its own and reads the answer until the server closes
// that.
func rawHTTP(t *testing.T, srv *sceptest.Server, request string) (*http.Response, []byte) {
	t.Helper()
	conn, err := net.Dial("tcp", srv.HTTP.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(30 * time.Second))
	if _, err := io.WriteString(conn, request); err != nil {
		t.Fatal(err)
	}
	in := bufio.NewReader(conn)
	res, err := http.ReadResponse(in, nil)
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := in.ReadByte(); err != io.EOF {
		t.Errorf("the connection is not closed after the answer: %v", err)
	}
	return res, body
}

// get sends a GET request and does not follow redirects.
func get(t *testing.T, url string) (*http.Response, []byte) {
	t.Helper()
	res, err := http.DefaultTransport.RoundTrip(mustRequest(t, http.MethodGet, url, nil))
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res, body
}

func mustRequest(t *testing.T, method, url string, body io.Reader) *http.Request {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, body)
	if err != nil {
		t.Fatal(err)
	}
	return req
}
