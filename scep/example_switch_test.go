package scep_test

import (
	"crypto/x509/pkix"
	"fmt"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"

	"github.com/scepkit/scepkit/backend/file"
	"github.com/scepkit/scepkit/challenge"
	"github.com/scepkit/scepkit/depot"
	"github.com/scepkit/scepkit/scep"
)

// A change of CA in three steps, with weeks between them.
func ExampleSwitch() {
	dir, remove := tempDir()
	defer remove()
	create := func(name string) *scep.Identity {
		ca, err := file.CreateCA(filepath.Join(dir, name+".pem"), filepath.Join(dir, name+".key"), file.CAOptions{Subject: pkix.Name{CommonName: name}})
		if err != nil {
			panic(err)
		}
		return ca
	}
	old, next := create("CA 2025"), create("CA 2035")
	config := scep.Config{
		CA:        old,
		Depot:     &depot.Memory{},
		Challenge: challenge.Static("correct-horse-battery-staple"),
		Renewal:   scep.Renewal{On: true},
	}
	service := new(scep.Switch) // mount this one
	set := func() {
		handler, err := scep.New(config)
		if err != nil {
			panic(err)
		}
		service.Set(handler)
		w := httptest.NewRecorder()
		service.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/scep?operation=GetCACaps", nil))
		fmt.Println("next CA on offer:", strings.Contains(w.Body.String(), "GetNextCACert"))
	}

	// 1. As it has been for years.
	set()

	// 2. Devices can learn of the next CA, enrol with it and renew with it.
	config.Next = next
	set()

	// 3. It takes over. The old one serves those who have not noticed.
	config.CA, config.Next, config.PastRA = next, nil, []*scep.Identity{old}
	set()
	// Output:
	// next CA on offer: false
	// next CA on offer: true
	// next CA on offer: false
}
